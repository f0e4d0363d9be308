"""`python -m msp_lens` is `msp-lens`."""

from msp_lens.cli import main

if __name__ == "__main__":
    main()
