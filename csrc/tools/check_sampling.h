#pragma once

// Sampling over odd vocabularies, rows and teams, in buffers of exactly the right size; prints a line per failure and
// returns how many there were. Part of kernel_check.
int check_sampling();
