"""The command line: what the workflow does, one step at a time, for people without the workflow.

Only click is imported before a command runs, so that help is there at once.
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

  `mscd COMMAND --help` has examples of each. docs/command-line.md shows what they print.
"""
INTERRUPTED = 130  # exit status of what Ctrl-C ended, as shells have it


class Commands(click.Group):
    """A group whose commands end with one line on stderr where the user can help it."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; exit status 1 after a UserError, 130 after Ctrl-C."""
        try:
            super().invoke(ctx)
        except UserError as error:
            click.echo(f"mscd: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the work."""
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say where there is more."""
        formatter.write(EPILOG)


class _OnStderr(logging.Handler):
    """Log lines as they are, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        click.echo(self.format(record), err=True)


@click.group(cls=Commands, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="mscd", message="%(prog)s %(version)s")
def main() -> None:
    """Few-step image generators from diffusion models, by multistep consistency distillation.

    Each command does one step: prepare images, take over a published network, sample it, score the samples. Training,
    and everything at once, is the workflow's: see README.md. Results go to the files that the options name, messages
    and progress to stderr. A mistake of the user's is one line on stderr and exit status 1, of usage 2; Ctrl-C is 130.
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
