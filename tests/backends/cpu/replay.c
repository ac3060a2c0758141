// Repeats recorded calls of the CPU kernel (recorded.py): replay LIBRARY FUNCTION FILE. Prints the set of instructions
// that the library chooses by itself, the number of calls, and the number of calls with other results. NaN equals NaN,
// whose sign and payload depend on the processor.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t tensors;
    const int64_t *table;
    int32_t row_length, param_type, grad_type, bits, block_size, round_param;
    double scalars[8];
} Row;

enum { MOST_ROWS = 64, MOST_TENSORS = 64, COLUMNS = 5 };

typedef struct { char *before[COLUMNS], *after[COLUMNS]; int64_t length[COLUMNS]; } Memory;

static void get(FILE *file, void *to, size_t n) {
    if (n != 0 && fread(to, 1, n, file) != n) { fputs("the file is cut off\n", stderr); exit(2); }
}

static uint64_t number(const char *x, int size) {
    uint64_t bits = 0;
    memcpy(&bits, x, (size_t)size);
    return bits;
}

static int same(const char *a, const char *b, int64_t bytes, int size, uint64_t inf) {
    for (int64_t i = 0; i < bytes; i += size) {
        uint64_t x = number(a + i, size), y = number(b + i, size), most = inf == 0 ? 0 : (1ull << (8 * size - 1)) - 1;
        if (x != y && (inf == 0 || (x & most) <= inf || (y & most) <= inf)) return 0;
    }
    return 1;
}

int main(int count, char **arguments) {
    static const int sizes[4] = {4, 2, 2, 8};
    static const uint64_t infs[4] = {0x7f800000, 0x7f80, 0x7c00, 0x7ff0000000000000};
    static Row rows[MOST_ROWS];
    static int64_t tables[MOST_ROWS][MOST_TENSORS * 8];
    static Memory memory[MOST_ROWS][MOST_TENSORS];
    void *library = count == 4 ? dlopen(arguments[1], RTLD_NOW) : 0;
    if (library == 0) { fprintf(stderr, "%s\n", count == 4 ? dlerror() : "replay LIBRARY FUNCTION FILE"); return 2; }
    void (*step)(const void *, int64_t, int64_t) = (void (*)(const void *, int64_t, int64_t))dlsym(library, arguments[2]);
    const char *(*instructions)(void) = (const char *(*)(void))dlsym(library, "adopt_instructions");
    FILE *file = fopen(arguments[3], "rb");
    if (step == 0 || instructions == 0 || file == 0) { fputs("no such function or file\n", stderr); return 2; }
    int64_t of_call, calls = 0, different = 0;
    while (fread(&of_call, 1, 8, file) == 8) {
        for (int64_t r = 0; r < of_call; r++) {
            Row *row = rows + r;
            get(file, &row->tensors, 8);
            get(file, &row->row_length, 24);
            get(file, row->scalars, 64);
            row->table = tables[r];
            for (int64_t t = 0; t < row->tensors; t++) {
                int64_t numbers[8], *to = tables[r] + row->row_length * t;  // elements, columns, key, five lengths
                get(file, numbers, 64);
                Memory *m = &memory[r][t];
                for (int half = 0; half < 2; half++)
                    for (int c = 0; c < COLUMNS; c++) {
                        char *new = malloc((size_t)numbers[3 + c] + 64);
                        get(file, new, (size_t)numbers[3 + c]);
                        (half ? m->after : m->before)[c] = new;
                        m->length[c] = numbers[3 + c];
                    }
                for (int c = 0; c < 4; c++) to[c] = (int64_t)(intptr_t)m->before[c];
                to[4] = numbers[0];
                if (row->row_length == 8) {
                    to[5] = (int64_t)(intptr_t)m->before[4];
                    to[6] = numbers[1];
                    to[7] = numbers[2];
                }
            }
        }
        step(rows, of_call, 2);
        int equal = 1;
        for (int64_t r = 0; r < of_call; r++)
            for (int64_t t = 0; t < rows[r].tensors; t++) {
                Memory *m = &memory[r][t];
                const int type = rows[r].param_type, moments = rows[r].bits == 16 ? 1 : type == 3 ? 3 : 0;
                const int types[COLUMNS] = {type, rows[r].grad_type, moments, moments, 0};
                for (int c = 0; c < COLUMNS; c++) {
                    const int codes = rows[r].bits == 8 && (c == 2 || c == 3);
                    equal &= same(m->before[c], m->after[c], m->length[c], codes ? 1 : sizes[types[c]],
                                  codes ? 0 : infs[types[c]]);
                    free(m->before[c]);
                    free(m->after[c]);
                }
            }
        calls++;
        different += !equal;
    }
    printf("%s: %lld calls, %lld different\n", instructions(), (long long)calls, (long long)different);
    return 0;
}
