"""Restore a folder, show how far it is, and go on after files that cannot be read."""

import sys

import c2fdft_cli as c2fdft


def show(done: int, total: int) -> None:
    sys.stderr.write(f"\r{done} of {total}")


restorer = c2fdft.load("derain", max_memory="6G")
try:
    restorer.restore_folder("photos", "dry", format="jpg", quality=92, progress=show)
except c2fdft.PartialFailure as error:  # all others are restored
    print(f"\n{error}", *error.details, sep="\n")
