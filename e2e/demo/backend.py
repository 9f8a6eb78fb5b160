#!/usr/bin/python3
"""A pod of the demo: answers every HTTP request with its name and the client's address.

Usage: backend.py NAME PORT
"""

import http.server
import ipaddress
import socket
import sys


class Pod(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        client = ipaddress.ip_address(self.client_address[0])
        client = getattr(client, "ipv4_mapped", None) or client
        body = f"{sys.argv[1]} saw {client}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Says nothing: the demo's output is the clients'."""


class BothFamilies(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """The demo stops its clients while they ask; that is not worth a traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


BothFamilies(("::", int(sys.argv[2])), Pod).serve_forever()
