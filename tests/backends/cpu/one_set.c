// What replay.c asks a library for, next to the step.
const char *adopt_instructions(void) { return "native"; }
