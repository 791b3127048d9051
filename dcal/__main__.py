"""`python -m dcal NAME ...` is `dcal-NAME ...`, for what starts processes by module, such as torchrun."""

import sys

from dcal.commands.app import CONFIGURED, OTHERS, run

if len(sys.argv) < 2 or sys.argv[1] not in (*CONFIGURED, *OTHERS):
    raise SystemExit(f"usage: python -m dcal {'|'.join((*CONFIGURED, *OTHERS))} ...")
run(sys.argv.pop(1))
