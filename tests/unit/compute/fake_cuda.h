/* tests/unit/compute/fake_cuda.h: a CUDA run time and kernels that compute nothing and note what is launched, so that
 * what the backend makes of operations is tested where there is no device. */
#ifndef REALM_TESTS_UNIT_COMPUTE_FAKE_CUDA_H
#define REALM_TESTS_UNIT_COMPUTE_FAKE_CUDA_H

/* The kernels' names since the last fake_cuda_forget, in order, by blanks. */
const char *fake_cuda_launches(void);
void fake_cuda_forget(void);

#endif
