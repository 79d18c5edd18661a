"""Stage 1 and stage 2: the loop both share, their run folders, the teachers and the student."""
