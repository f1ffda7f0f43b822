// The functions of scan.c for numbers of the type Real.

INLINE Real *NAMED(at)(Array array, int64_t t, int64_t group, int64_t column)
{
    return (Real *)array.first + t * array.step + group * array.group + column;
}

static void NAMED(scan_block)(const Scan *scan, int64_t group, int64_t first, int64_t count)
{
    const Real *before = NAMED(at)(scan->state, 0, group, first);
    for (int64_t t = 0; t < scan->steps; t++) {
        const Real *a = NAMED(at)(scan->a, t, group, first);
        const Real *b = NAMED(at)(scan->b, t, group, first);
        Real *h = NAMED(at)(scan->states, t, group, first);
#pragma GCC ivdep
        for (int64_t j = 0; j < count; j++)
            h[j] = a[j] * before[j] + b[j];
        before = h;
    }
}

// The gradient of the states is the same recurrence from the last step to the first.
static void NAMED(gradient_block)(const Scan *scan, int64_t group, int64_t first, int64_t count)
{
    Real *carried = NAMED(at)(scan->d_state, 0, group, first);
    for (int64_t j = 0; j < count; j++)
        carried[j] = 0;
    for (int64_t t = scan->steps - 1; t >= 0; t--) {
        const Real *a = NAMED(at)(scan->a, t, group, first);
        const Real *d_h = NAMED(at)(scan->d_states, t, group, first);
        const Real *before = NAMED(at)(scan->state, 0, group, first);
        if (t > 0)
            before = NAMED(at)(scan->states, t - 1, group, first);
        Real *d_a = NAMED(at)(scan->d_a, t, group, first);
        Real *d_b = NAMED(at)(scan->d_b, t, group, first);
#pragma GCC ivdep
        for (int64_t j = 0; j < count; j++) {
            Real gradient = d_h[j] + carried[j];
            d_b[j] = gradient;
            d_a[j] = gradient * before[j];
            carried[j] = gradient * a[j];
        }
    }
}

void NAMED(rnn_scan)(const Scan *scan) { share_blocks(scan, NAMED(scan_block)); }

void NAMED(rnn_scan_gradient)(const Scan *scan) { share_blocks(scan, NAMED(gradient_block)); }
