"""A connection to a server that can go down and on which answers get lost."""

import socket
import threading


class Proxy:
    """Passes requests on to a server of this machine. `go_down` and `come_back` do to clients what a server's do."""

    def __init__(self, server_uri: str):
        self._server = int(server_uri.rpartition(":")[2])
        self._lost, self.left = b"", 0
        self._open: list[socket.socket] = []
        self._listen(0)
        self.port = self._listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def lose_answers(self, request: bytes, times: int) -> None:
        """Cuts the connection instead of answering the first few requests that hold `request`; `left` counts them."""
        self._lost, self.left = request, times

    def go_down(self) -> None:
        """Refuses connections, ends the open ones; does nothing where that was done."""
        for connection in (self._listener, *self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)  # ends an accept or recv that waits
            except OSError:  # the other side has closed its end
                continue
        self._listener.close()
        self._open.clear()

    def come_back(self) -> None:
        self._listen(self.port)

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._server))
        with client, server:
            lose = threading.Event()
            threading.Thread(target=self._answer, args=(server, client, lose), daemon=True).start()
            try:
                while data := client.recv(65536):
                    if self.left and self._lost in data:
                        self.left -= 1
                        lose.set()
                    server.sendall(data)
            except OSError:  # cut
                return

    def _answer(self, server: socket.socket, client: socket.socket, lose: threading.Event) -> None:
        try:
            while (data := server.recv(65536)) and not lose.is_set():
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side has closed its end
            return
