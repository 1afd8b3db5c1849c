// Echoes WebSocket messages with the library `ws`: echo.cjs CERTIFICATE KEY; prints its ports, then serves.
const fs = require("fs");
const { WebSocketServer } = require("ws");

// It ends the connection so, without a close frame.
const [FIN, RST] = ["FIN", "RST"].map(word => Buffer.from(word));

const [certificate, key] = process.argv.slice(2).map(file => fs.readFileSync(file));
const refuse = (request, answer) => answer.writeHead(426).end();
const servers = [
    require("http").createServer(refuse),
    require("https").createServer({ cert: certificate, key }, refuse),
];
const listening = servers.map(server => {
    const sockets = new WebSocketServer({ server, perMessageDeflate: { threshold: 0 }, maxPayload: 1 << 24 });
    sockets.on("connection", socket => {
        socket.on("message", (message, binary) => {
            const carrier = socket._socket;
            if (!binary && message.equals(FIN)) carrier.end();
            // TLS has no reset of its own.
            else if (!binary && message.equals(RST)) (carrier._parent ?? carrier).resetAndDestroy();
            else socket.send(message, { binary });
        });
        socket.on("error", () => {});
    });
    return new Promise(resolve => server.listen(0, "127.0.0.1", () => resolve(server.address().port)));
});
Promise.all(listening).then(ports => console.log("PORTS", ...ports));
