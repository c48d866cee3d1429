/*
 * Makes a directory as far away as an object store: opening a file or folder in SLOW_DIR takes SLOW_MS milliseconds more.
 * One opening stands for one request, and so does a listing. Loaded into programs by LD_PRELOAD; made by lib/replay.py.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void wait_for(const char *path)
{
	const char *directory = getenv("SLOW_DIR");
	const char *text = getenv("SLOW_MS");
	int before = errno;

	if (directory == NULL || text == NULL || path == NULL || strncmp(path, directory, strlen(directory)) != 0)
		return;
	long ms = atol(text);
	struct timespec left = { ms / 1000, ms % 1000 * 1000000 };
	while (nanosleep(&left, &left) != 0 && errno == EINTR)
		;
	errno = before;
}

/* Flags that come with a mode have one more argument. */
#define MODE(flags)                                                      \
	mode_t mode = 0;                                                 \
	if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {   \
		va_list more;                                            \
		va_start(more, flags);                                   \
		mode = va_arg(more, mode_t);                             \
		va_end(more);                                            \
	}

#define OPEN(name)                                                       \
	int name(const char *path, int flags, ...)                       \
	{                                                                \
		MODE(flags)                                              \
		int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name); \
		wait_for(path);                                          \
		return real(path, flags, mode);                          \
	}

#define OPEN_AT(name)                                                    \
	int name(int folder, const char *path, int flags, ...)           \
	{                                                                \
		MODE(flags)                                              \
		int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, #name); \
		wait_for(path);                                          \
		return real(folder, path, flags, mode);                  \
	}

OPEN(open)
OPEN(open64)
OPEN_AT(openat)
OPEN_AT(openat64)

/*
 * A listing. It opens folders past the functions above; those below the one that it began with are of the same listing,
 * which is one request to a store that has no folders.
 */
DIR *opendir(const char *path)
{
	static __thread char listed[4096];
	DIR *(*real)(const char *) = dlsym(RTLD_NEXT, "opendir");
	size_t length = strlen(listed);

	if (length == 0 || strncmp(path, listed, length) != 0 || path[length] != '/') {
		wait_for(path);
		listed[0] = 0;
		strncat(listed, path, sizeof listed - 1);
	}
	return real(path);
}
