"""What semantic scale tells about data, without training: ``python -m dsb_jax.toolkit``, and the same as functions.

Commands are functions of :class:`Points` of the same names; what they return can be read, tabled, drawn and written.
``collect`` is :mod:`~dsb_jax.toolkit.collection`, which keeps what was collected between calls. Inputs become points by
``rows(INPUT).load()``.
"""

from dsb_jax.toolkit import collection, points
from dsb_jax.toolkit.agglomeration import ClassTree
from dsb_jax.toolkit.agglomeration import of as tree
from dsb_jax.toolkit.class_geometry import Geometry, geometry
from dsb_jax.toolkit.class_scales import Scales, scales
from dsb_jax.toolkit.correlation import Correlations, correlate
from dsb_jax.toolkit.feature_drift import Drift, drift
from dsb_jax.toolkit.growth import Growth, marginal
from dsb_jax.toolkit.inputs import Options, rows
from dsb_jax.toolkit.matching import Hierarchy
from dsb_jax.toolkit.matching import match as hierarchy
from dsb_jax.toolkit.points import Points
from dsb_jax.toolkit.selection import Selection, select
from dsb_jax.toolkit.summary import Report, report

__all__ = [
    "ClassTree",
    "Correlations",
    "Drift",
    "Geometry",
    "Growth",
    "Hierarchy",
    "Options",
    "Points",
    "Report",
    "Scales",
    "Selection",
    "collection",
    "correlate",
    "drift",
    "geometry",
    "hierarchy",
    "marginal",
    "points",
    "report",
    "rows",
    "scales",
    "select",
    "tree",
]
