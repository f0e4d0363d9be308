import pytest

from msp_lens.experiments import reproduction
from tests.conftest import laid_out


@pytest.fixture(autouse=True, scope="package")
def pictures_laid_out():
    """Pictures are laid out but not drawn: in two themes, two widths and three formats they take most of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reproduction, "themed", laid_out)
        yield
