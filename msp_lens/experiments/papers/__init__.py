"""The papers that can be reproduced, one file each, read as its methods section: claim, experiment, figure."""

from msp_lens.experiments.papers.constrained2025 import CONSTRAINED2025
from msp_lens.experiments.papers.factored2026 import FACTORED2026
from msp_lens.experiments.papers.forcing2026 import FORCING2026
from msp_lens.experiments.papers.nonergodic2025 import NONERGODIC2025
from msp_lens.experiments.papers.quantum2025 import QUANTUM2025
from msp_lens.experiments.papers.shai2024 import SHAI2024
from msp_lens.experiments.papers.superposition import SUPERPOSITION

_ALL = (SHAI2024, CONSTRAINED2025, FACTORED2026, NONERGODIC2025, QUANTUM2025, FORCING2026, SUPERPOSITION)
PAPERS = {paper.name: paper for paper in _ALL}

__all__ = ["PAPERS"]
