"""The settings of malloc."""

from janus_jax import host_memory


def test_the_allocator_keeps_its_defaults_on_request(monkeypatch):
    calls = []
    monkeypatch.setattr(host_memory, "_is_set", False)
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda *_, **__: calls.append("libc"))
    monkeypatch.setenv("JANUS_JAX_KEEP_MEMORY", "0")
    host_memory.keep_freed_memory()
    assert not calls
    assert not host_memory._is_set


def test_the_allocator_is_set_once(monkeypatch):
    calls = []
    monkeypatch.delenv("JANUS_JAX_KEEP_MEMORY", raising=False)
    monkeypatch.setattr(host_memory, "_is_set", True)
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda *_, **__: calls.append("libc"))
    host_memory.keep_freed_memory()
    assert not calls
