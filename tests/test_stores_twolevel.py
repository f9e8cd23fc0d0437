from collections.abc import AsyncIterator
import pytest
from echo_cache.stores import RedisStore, Store, MemoryStore, TwoLevelStore
from tests.store_contract import StoreContract

class TestTwoLevelStore(StoreContract):
    @pytest.fixture
    async def store(self, redis_url: str) -> AsyncIterator[Store]:
        store = TwoLevelStore(MemoryStore(), RedisStore(redis_url, timeout=5))
        yield store
        await store.aclose()
