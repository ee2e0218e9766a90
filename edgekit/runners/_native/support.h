/* What every part of the runner needs: the one answer on standard output, errors, clock, memory, files. */
#ifndef EDGEKIT_NATIVE_SUPPORT_H
#define EDGEKIT_NATIVE_SUPPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Kinds of errors, which are the exit statuses too; the names are the agent's. */
typedef enum { INTERNAL = 1, REQUEST = 2, RUNTIME = 3, MODEL = 4, OUT_OF_MEMORY = 5, DISK_FULL = 6, TIMEOUT = 7 } Kind;

/* Keeps standard output for the answer alone: what libraries print there goes to standard error from now on. */
void keep_stdout(void);

/* The stream of the answer. */
FILE *answer(void);

/* Prints `{"ok": false, "error": …}` and ends the process with the kind as its status. */
_Noreturn void fail(Kind kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Ends the process as soon as its parent does, and after so many seconds at the latest. */
void limit_life(unsigned seconds);

/* Prints a string as JSON has it. */
void print_string(const char *text);

/* Prints numbers as a JSON list. */
void print_numbers(const double *values, size_t count);

/* Milliseconds of a clock that only goes forward. */
double now_ms(void);

/* A size of this process in MiB: VmRSS or VmHWM; negative where the system does not tell. */
double status_mib(const char *key);

/* Proportional set size in MiB; negative where the kernel does not tell. */
double pss_mib(void);

/* Makes VmHWM start from now; false where the kernel refuses, or takes the order and ignores it. */
bool reset_peak(void);

/* Memory, or the end of the process. */
void *need(size_t bytes);

/* Opens a file, reads or writes exactly so many bytes: or the end of the process. */
FILE *open_file(const char *path, const char *mode);
void read_exactly(FILE *stream, void *data, size_t bytes, const char *path);
void write_exactly(FILE *stream, const void *data, size_t bytes, const char *path);
void close_written(FILE *stream, const char *path);

#endif
