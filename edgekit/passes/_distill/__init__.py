"""Teachers and students: how they are built, what the teacher says and is remembered of it, and the loss they give."""
