"""Servers of Python as Debian has them: each lists its requests in a file, and tells the client what it counted.

Arguments: h11, tornado, gunicorn or waitress; the file.
"""

import hashlib
import os
import socket
import sys
import threading

NAME, FILE = sys.argv[1:]
LIST = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def count(method, target, body):
    digest = hashlib.sha256(method + b" " + target + b"\n" + body).hexdigest()
    # One write for each: threads may count at the same time.
    os.write(LIST, f"{digest} {ascii(method)} {ascii(target)} {len(body)}\n".encode())
    return digest


def listener():
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    return listening


def ready(listening):
    print(f"port {listening.getsockname()[1]}", flush=True)


def h11_server():
    import h11

    def serve(client):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = h11.Connection(h11.SERVER)
        request, pieces = None, []

        def send(event):
            client.sendall(connection.send(event))

        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    if connection.they_are_waiting_for_100_continue:
                        send(h11.InformationalResponse(status_code=100, headers=[]))
                    connection.receive_data(client.recv(65536))
                elif event is h11.PAUSED:
                    connection.start_next_cycle()
                elif isinstance(event, h11.Request):
                    request, pieces = event, []
                elif isinstance(event, h11.Data):
                    pieces.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    digest = count(bytes(request.method), bytes(request.target), b"".join(pieces))
                    send(h11.Response(status_code=200, headers=[("X-Seen", digest), ("Content-Length", "0")]))
                    send(h11.EndOfMessage())
                    if connection.our_state is h11.MUST_CLOSE:
                        return
                    connection.start_next_cycle()
                elif isinstance(event, h11.ConnectionClosed):
                    return
        except h11.RemoteProtocolError as error:
            if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                headers = [("Content-Length", "0"), ("Connection", "close")]
                send(h11.Response(status_code=error.error_status_hint, headers=headers))
                send(h11.EndOfMessage())
        except OSError:
            pass
        finally:
            client.close()

    listening = listener()
    ready(listening)
    while True:
        client, _ = listening.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


def tornado_server():
    from tornado import httpserver, httputil, ioloop

    def serve(request):
        digest = count(request.method.encode("latin1"), request.uri.encode("latin1"), request.body)
        headers = httputil.HTTPHeaders({"X-Seen": digest, "Content-Length": "0"})
        request.connection.write_headers(httputil.ResponseStartLine("HTTP/1.1", 200, "OK"), headers)
        request.connection.finish()

    listening = listener()
    listening.setblocking(False)
    httpserver.HTTPServer(serve).add_sockets([listening])
    ready(listening)
    ioloop.IOLoop.current().start()


def application(environ, start_response):
    target = environ.get("RAW_URI") or environ["REQUEST_URI"]
    digest = count(environ["REQUEST_METHOD"].encode("latin1"), target.encode("latin1"), environ["wsgi.input"].read())
    start_response("200 OK", [("X-Seen", digest), ("Content-Length", "0")])
    return []


def gunicorn_server():
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self):
            settings = {
                "bind": "127.0.0.1:0",
                "worker_class": "gthread",
                # A connection on which nothing was asked yet holds one.
                "threads": 64,
                "keepalive": 300,
                "graceful_timeout": 1,
                "loglevel": "critical",
                "when_ready": lambda server: ready(server.LISTENERS[0].sock),
            }
            for name, value in settings.items():
                self.cfg.set(name, value)

        def load(self):
            return application

    Server().run()


def waitress_server():
    import waitress

    listening = listener()
    ready(listening)
    waitress.serve(application, sockets=[listening], threads=4, channel_timeout=300, _quiet=True)


{"h11": h11_server, "tornado": tornado_server, "gunicorn": gunicorn_server, "waitress": waitress_server}[NAME]()
