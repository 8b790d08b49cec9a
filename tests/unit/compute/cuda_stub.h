/* tests/unit/compute/cuda_stub.h: a CUDA run time and kernels that compute nothing and note what is launched, so that
 * what the backend makes of operations is tested where there is no device. */
#ifndef REALM_TESTS_UNIT_COMPUTE_CUDA_STUB_H
#define REALM_TESTS_UNIT_COMPUTE_CUDA_STUB_H

/* The kernels' names since the last stub_forget, in order, by blanks. */
const char *stub_launches(void);
void stub_forget(void);

#endif
