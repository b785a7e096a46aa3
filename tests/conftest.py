"""What every test can count on."""

import signal

# A shell's background jobs ignore Ctrl-C and hand that on; what tests interrupt has to hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
