"""`python -m sftctl`: what torchrun launches."""

from sftctl.cli.app import app

if __name__ == "__main__":
    app(prog_name="sftctl")
