"""The interface that users rely on is that of the golden file."""

import json

from tests.golden import api, files


def test_the_interface_is_that_of_the_golden_file() -> None:
    files.check(files.read(api.NAME), json.loads(json.dumps(api.snapshot())))
