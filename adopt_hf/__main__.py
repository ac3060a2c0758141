"""Run a command of `adopt-hf` (`python -m adopt_hf`). The table in `adopt_hf/commands/__init__.py` lists them."""

from adopt_hf.commands import main

if __name__ == "__main__":
    main()
