"""What the project computes from fixed inputs is what it computed before."""

import pytest
from golden import Golden, load_golden


@pytest.mark.parametrize("golden", load_golden(), ids=lambda golden: golden.name)
def test_result_is_the_golden_one(golden: Golden):
    differences = list(golden.differences(golden.read(), golden.compute()))
    assert not differences, "\n".join(differences[:20])
