"""The papers that can be reproduced, one file each, read as its methods section: claim, experiment, figure."""

from msp_lens.experiments.papers.factored2026 import FACTORED2026
from msp_lens.experiments.papers.forcing2026 import FORCING2026
from msp_lens.experiments.papers.nonergodic2025 import NONERGODIC2025
from msp_lens.experiments.papers.quantum2025 import QUANTUM2025
from msp_lens.experiments.papers.shai2024 import SHAI2024

PAPERS = {paper.name: paper for paper in (SHAI2024, FACTORED2026, NONERGODIC2025, QUANTUM2025, FORCING2026)}

__all__ = ["PAPERS"]
