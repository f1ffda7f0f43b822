// The recurrence h_t = a_t ⊙ h_{t−1} + b_t over T time steps, and its gradient.
//
// rnn/scan.py calls the functions rnn_scan_…. Every column of an array is a sequence of its own, so
// threads share the columns.

#ifdef _OPENMP
#include <omp.h>
#endif

#include "functions.h"

// Numbers of all time steps, in groups of columns that are next to each other. `step` and `group` are
// how many numbers lie between one of them and the next.
typedef struct {
    void *first;
    int64_t step, group;
} Array;

typedef struct {
    int64_t steps, groups, columns, threads;
    Array a, b, state, states;          // state is before the first step
    Array d_states, d_a, d_b, d_state;  // of the gradient alone
} Scan;

typedef void ScanBlock(const Scan *scan, int64_t group, int64_t first, int64_t count);

// Columns that a thread computes for all steps: their last states stay in the first cache.
enum { BLOCK_COLUMNS = 2048 };

static void share_blocks(const Scan *scan, ScanBlock *compute)
{
    int64_t share = (scan->groups * scan->columns + scan->threads - 1) / scan->threads;
    int64_t size = least(least(round_up(share, 16), BLOCK_COLUMNS), scan->columns);
    int64_t blocks = (scan->columns + size - 1) / size;
#pragma omp parallel for num_threads((int)scan->threads) if (scan->threads > 1)
    for (int64_t i = 0; i < scan->groups * blocks; i++) {
        int64_t first = i % blocks * size;
        compute(scan, i / blocks, first, least(size, scan->columns - first));
    }
}

#define Real float
#define NAMED(function) function##_float
#include "scan.h"
#undef Real
#undef NAMED

#define Real double
#define NAMED(function) function##_double
#include "scan.h"
