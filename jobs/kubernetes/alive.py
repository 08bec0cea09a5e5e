"""The liveness probe of a Job's pods: `python -m jobs.kubernetes.alive` exits with 1 if the pod's Ray node hangs.

A pod without a Ray node is alive: its worker waits for a new head, or its entry point is about to notice that the node has exited.
"""

import http.client
import os
import sys

PORT = 52365
"""Of Ray's agent on every node."""
PATH = "/api/local_raylet_healthz"


def main() -> int:
    connection = http.client.HTTPConnection(os.environ["POD_IP"], PORT, timeout=5)
    try:
        connection.request("GET", PATH)
        return int(connection.getresponse().status != 200)
    except ConnectionRefusedError:
        return 0
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
