"""`python -m mscd`, which is `mscd` where torchrun starts it."""

from mscd.cli.main import main

if __name__ == "__main__":
    main(prog_name="mscd")
