import pytest


@pytest.fixture
def audit_inline(monkeypatch):
    """Audit in this process, whose memory is not to be bounded, where a test is not about processes."""
    from bright import in_this_process

    from tcar.data.health import check

    monkeypatch.setattr("tcar.data.audit.isolated_map", in_this_process)
    monkeypatch.setattr("tcar.data.audit.check_within_limits", check)
