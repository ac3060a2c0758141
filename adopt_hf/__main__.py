"""python -m adopt_hf run script.py ARGS... | run -m package.module ARGS... | env --check | memory --params 7e9 ..."""

from adopt_hf.commands import main

if __name__ == "__main__":
    main()
