"""Students behind one interface, so that every comparison is on equal terms."""

from lrc_jax.students.base import Frozen as Frozen
from lrc_jax.students.base import Student as Student
from lrc_jax.students.base import StudentOptions as StudentOptions
from lrc_jax.students.registry import STUDENT_KINDS as STUDENT_KINDS
from lrc_jax.students.registry import make_student as make_student
