"""`python -m mscd`, which is `mscd` where torchrun starts it."""

from mscd.cli import main

if __name__ == "__main__":
    main(prog_name="mscd")
