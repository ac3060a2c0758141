// Threads of the system: those of POSIX, or those of Windows. A thread runs a function `Ended THREAD_CALL f(void *)`.

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#define THREAD_CALL WINAPI
typedef DWORD Ended;
typedef HANDLE Thread;

static int start_thread(Thread *thread, Ended (THREAD_CALL *run)(void *), void *argument) {  // returns 0 on failure
    *thread = CreateThread(0, 0, run, argument, 0, 0);
    return *thread != 0;
}

static void join_thread(Thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}

#else
#include <pthread.h>

#define THREAD_CALL
typedef void *Ended;
typedef pthread_t Thread;

static int start_thread(Thread *thread, Ended (*run)(void *), void *argument) {
    return pthread_create(thread, 0, run, argument) == 0;
}

static void join_thread(Thread thread) { pthread_join(thread, 0); }

#endif
