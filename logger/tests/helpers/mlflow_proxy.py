"""A proxy in front of a server, which can go down and lose responses."""

import socket
import threading


class Proxy:
    """Forwards requests to a local server; to clients, `go_down` and `come_back` are the server's."""

    def __init__(self, server_uri: str):
        self._server = int(server_uri.rpartition(":")[2])
        self._lost, self.left = b"", 0
        self._open: list[socket.socket] = []
        self._listen(0)
        self.port = self._listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def lose_answers(self, request: bytes, times: int) -> None:
        """Drop the connection in place of the next `times` responses to requests that contain `request`.

        `left` counts those still to be dropped.
        """
        self._lost, self.left = request, times

    def go_down(self) -> None:
        """Refuse new connections and end the open ones; do nothing if already down."""
        for connection in (self._listener, *self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)  # unblocks a waiting accept or recv
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
