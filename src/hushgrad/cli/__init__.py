"""The command line. One file per command; `hushgrad.cli.main` names them."""
