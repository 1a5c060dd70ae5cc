"""`python -m actors`: what has to be settled before anything of `actors/process.py` is imported."""

from protocol.process import ONE_THREAD, fix_hash_seed, seek_user_modules_last

if __name__ == "__main__":
    seek_user_modules_last()  # First: a user's file must not hide a module of ours.
    fix_hash_seed()
    import os
    import signal

    os.environ.update(ONE_THREAD)  # NumPy reads these when it is imported.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # End at once: there is no environment to close yet.
    from actors.process import main

    main()
