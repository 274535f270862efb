"""What stands at the seam between a caller and an upstream's slots."""

import msgspec

from tidegate.admission.model_gate import Told
from tidegate.admission.slots import Lease


def test_no_key_is_in_the_text_of_a_lease_or_of_a_grant() -> None:
    lease = Lease("local", 0.5, "http://127.0.0.1:1/v1", "a secret")
    told = Told(base_url="http://127.0.0.1:1/v1", api_key="a secret", slot=3)
    for held in (lease, told):
        for text in (repr(held), str(held), f"{[held]}"):
            assert "secret" not in text
            assert "http://127.0.0.1:1/v1" in text
    assert msgspec.json.decode(msgspec.json.encode(told), type=Told) == told
