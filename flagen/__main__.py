"""`python -m flagen` is `flagen`."""

from flagen.cli import app

if __name__ == "__main__":
    app(prog_name="flagen")
