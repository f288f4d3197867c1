"""Where token sequences come from: languages with known conditionals, and text."""

from lrc_jax.data.pools import DataSource as DataSource
from lrc_jax.data.pools import Pool as Pool
