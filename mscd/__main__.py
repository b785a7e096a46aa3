"""`python -m mscd`: the `mscd` command in the form that torchrun can start."""

from mscd.cli.main import main

if __name__ == "__main__":
    main(prog_name="mscd")
