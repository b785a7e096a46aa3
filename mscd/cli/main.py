"""The command line: the workflow's steps one at a time, for use without the workflow.

Only click is imported before a command runs, so that help appears at once.
"""

from __future__ import annotations

import logging

import click

from mscd import __version__
from mscd.cli import convert, ema, export, generate, info, pack, plan, reference, score
from mscd.cli.options import SETTINGS
from mscd.errors import UserError

EPILOG = """
Examples:
  From a published teacher to a picture of 64 images:
    mscd convert https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-cond-vp.pkl teacher.safetensors
    mscd info teacher.safetensors
    mscd generate teacher.safetensors

  `mscd COMMAND --help` shows examples of each command. docs/reference/command-line.md shows what they print.
"""
INTERRUPTED = 130  # exit status after Ctrl-C, as in a shell


class Commands(click.Group):
    """A command group that reports errors as one line on stderr if the user can fix them."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; exit with status 1 after a UserError and 130 after Ctrl-C."""
        try:
            super().invoke(ctx)
        except UserError as error:
            click.echo(f"mscd: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they are used."""
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and where to find more."""
        formatter.write(EPILOG)


class _OnStderr(logging.Handler):
    """A handler that writes log messages to stderr as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's message."""
        click.echo(self.format(record), err=True)


@click.group(cls=Commands, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="mscd", message="%(prog)s %(version)s")
def main() -> None:
    """Few-step image generators from diffusion models, by consistency, moment matching or distribution matching.

    Each command does one step: prepare images, import a published network, sample it, score the samples. Training, or
    running all steps at once, is done by the workflow: see README.md. Results go to files and stdout, messages and
    progress to stderr. Exit status 1 means an error that you can fix, explained in one line on stderr; 2 means wrong
    usage, and 130 means Ctrl-C.
    """
    logger = logging.getLogger("mscd")
    logger.handlers = [_OnStderr()]
    logger.setLevel(logging.INFO)


for command in (
    pack.pack,
    reference.reference,
    convert.convert,
    info.info,
    generate.generate,
    score.score,
    ema.ema,
    export.export,
    plan.plan,
):
    main.add_command(command)
