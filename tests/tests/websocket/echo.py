"""Echoes WebSocket messages with the library `websockets`: echo.py CERTIFICATE KEY; prints its ports, then serves."""

import asyncio
import ssl
import struct
import sys
from socket import SO_LINGER, SOL_SOCKET

import websockets


async def echo(socket, *_):
    try:
        async for message in socket:
            # It ends the connection so, without a close frame.
            if message == "FIN":
                socket.transport.close()
            elif message == "RST":
                carrier = socket.transport.get_extra_info("socket")
                carrier.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                socket.transport.abort()
            else:
                await socket.send(message)
    except websockets.ConnectionClosed:
        pass


async def main(certificate, key):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    ports = []
    for context in (None, tls):
        server = await websockets.serve(
            echo,
            "127.0.0.1",
            0,
            ssl=context,
            subprotocols=["superchat", "chat"],
            max_size=1 << 24,
            ping_interval=None,
            close_timeout=5,
        )
        ports.append(server.sockets[0].getsockname()[1])
    print("PORTS", *ports, flush=True)
    await asyncio.Future()


asyncio.run(main(*sys.argv[1:]))
