"""What every test relies on."""

import os
import signal

# A shell's background jobs ignore Ctrl-C and pass that on to their children; the tests interrupt processes.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests and the processes that they start run in parallel: more threads would only compete for the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
