"""What the folders of runs have in them: the list of `dltrain ls runs`, and the differences of `dltrain diff`."""
