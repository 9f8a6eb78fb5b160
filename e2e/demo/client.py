#!/usr/bin/python3
"""A client of the demo: asks a URL again and again, each time on a connection of its own.

Usage: client.py URL [COUNT]

Prints a line for each request: when it began (seconds), and the answer, `refused`, `timeout`, or what else went
wrong. Without COUNT it goes on until it is terminated.
"""

import itertools
import sys
import time
import urllib.error
import urllib.request


def ask(url):
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            return answer.read().decode().strip()
    except (TimeoutError, ConnectionError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ConnectionRefusedError):
            return "refused"
        return "timeout" if isinstance(reason, TimeoutError) else f"failed: {reason}"


rounds = range(int(sys.argv[2])) if len(sys.argv) > 2 else itertools.count()
for _ in rounds:
    began = time.time()
    print(f"{began:.6f} {ask(sys.argv[1])}", flush=True)
