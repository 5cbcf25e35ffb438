"""`python -m trireme.cli` is `trireme`."""

from trireme.cli.main import main

if __name__ == "__main__":
    main()
