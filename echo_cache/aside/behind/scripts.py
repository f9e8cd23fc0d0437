"""
What must be one step, in Lua. The one rule: only the owner of the lease takes from a queue and acknowledges.

All keys are in one slot: {<prefix>:behind:<name>} with a suffix. LOOK reads a queue that only Redis knows, in that slot
too.
"""

from __future__ import annotations

from typing import Final

__all__ = ["APPEND", "LOOK", "SETTLE", "STATE", "TAKE_WRITES", "TOLD"]

# KEYS[1]  the queue
# KEYS[2]  the newest write of each key
# KEYS[3]  the writes that workers were not told of yet
# ARGV[1]  the digest of the key
# ARGV[2]  the name of the saver
# ARGV[3]  the write
# ARGV[4]  how many writes the queue may have
# Returns  the ID of the write; nothing when the queue is full
APPEND: Final = """
-- What is of another type fails here, before anything is written.
redis.call('HEXISTS', KEYS[2], ARGV[1])
redis.call('SCARD', KEYS[3])
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[4]) then return false end
local id = redis.call('XADD', KEYS[1], '*', 'write', ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], id .. ' ' .. ARGV[2])
redis.call('SADD', KEYS[3], id)
return id
"""

# KEYS[1]  the writes that workers were not told of yet
# ARGV[1..] those that they were told of
# Returns  nothing
TOLD: Final = "for at = 1, #ARGV do redis.call('SREM', KEYS[1], ARGV[at]) end"

# KEYS[1]  the newest write of each key
# ARGV[1]  the digest of the key
# ARGV[2]  what the names of queues begin with
# ARGV[3]  what they end with
# Returns  {the saver, the write}; nothing when no write of the key waits
LOOK: Final = """
local there = redis.call('HGET', KEYS[1], ARGV[1])
if not there then return false end
local id, saver = string.match(there, '^(%d+%-%d+) ([%w_%-]+)$')
if not id then return false end
local found = redis.call('XRANGE', ARGV[2] .. saver .. ARGV[3], id, id)[1]
if not found then return false end
return {saver, found[2][2]}
"""

# KEYS[1]  the queue
# KEYS[2]  the lease
# ARGV[1]  the token of its owner
# ARGV[2]  the consumer group, and the name of its one consumer
# ARGV[3]  the ID behind which what was given out before is given out again
# ARGV[4]  how many writes to return at the most
# ARGV[5]  at how many bytes to stop
# Returns  {what was given out before, what is new}, each a list of {ID, fields}; 0 if the lease is another's
TAKE_WRITES: Final = """
if redis.pcall('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local size, count = 0, 0
local function read(after)
  local function ask()
    return redis.pcall('XREADGROUP', 'GROUP', ARGV[2], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], after)
  end
  local found = ask()
  if found and found.err and string.find(found.err, 'NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[2], '0', 'MKSTREAM')
    found = ask()
  end
  if found and found.err then error(found.err) end
  return found and found[1] and found[1][2][1]
end
local before, new, after = {}, {}, ARGV[3]
while count < tonumber(ARGV[4]) and size < tonumber(ARGV[5]) do
  local entry = read(after)
  if not entry then
    if after == '>' then break end
    after = '>'
  else
    if after == '>' then new[#new + 1] = entry else
      before[#before + 1] = entry
      after = entry[1]
    end
    count = count + 1
    size = size + #(entry[2] and entry[2][2] or '')
  end
end
return {before, new}
"""

# KEYS[1]  the queue
# KEYS[2]  the newest write of each key
# KEYS[3]  the writes that workers were not told of yet
# KEYS[4]  the lease
# KEYS[5]  the dead letters
# ARGV[1]  the token of the lease's owner
# ARGV[2]  the consumer group
# ARGV[3]  1 if workers were told of the writes
# ARGV[4]  the name of the error with which the last write is given up, empty when it is saved
# ARGV[5]  how often it was tried
# ARGV[6]  how many dead letters there are, about
# ARGV[7]  the digest of the key
# ARGV[8]  the name of the saver
# ARGV[9..] the IDs of the writes, oldest first
# Returns  1 when they are gone, 2 when workers are to be told first, 0 if the lease is another's
SETTLE: Final = """
if redis.pcall('GET', KEYS[4]) ~= ARGV[1] then return 0 end
if ARGV[3] ~= '1' then
  for at = 9, #ARGV do
    if redis.call('SISMEMBER', KEYS[3], ARGV[at]) == 1 then return 2 end
  end
end
local newest = ARGV[#ARGV]
if ARGV[4] ~= '' then
  local entry = redis.call('XRANGE', KEYS[1], newest, newest)[1]
  if entry then
    redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[6], '*', 'id', newest, 'error', ARGV[4], 'attempts', ARGV[5],
      'write', entry[2][2])
  end
end
if redis.call('HGET', KEYS[2], ARGV[7]) == newest .. ' ' .. ARGV[8] then redis.call('HDEL', KEYS[2], ARGV[7]) end
for at = 9, #ARGV do
  redis.call('XACK', KEYS[1], ARGV[2], ARGV[at])
  redis.call('XDEL', KEYS[1], ARGV[at])
  redis.call('SREM', KEYS[3], ARGV[at])
end
return 1
"""

# KEYS[1]  the queue
# Returns  {how many writes it has, for how many ms the first has waited}
STATE: Final = """
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first then return {0, 0} end
local now = redis.call('TIME')
local age = tonumber(now[1]) * 1000 + tonumber(now[2]) / 1000 - tonumber(string.match(first[1], '^%d+'))
return {redis.call('XLEN', KEYS[1]), math.max(0, math.floor(age))}
"""

# KEYS[1]  the dead letters
# ARGV[1]  how many at the most
# ARGV[2]  after how many bytes no more are added
# ARGV[3]  where to begin, as XRANGE has it
# Returns  the oldest from there on, each {ID, fields}
DEAD: Final = """
local found, size, after = {}, 0, ARGV[3]
while #found < tonumber(ARGV[1]) and size < tonumber(ARGV[2]) do
  local entry = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', 1)[1]
  if not entry then break end
  found[#found + 1] = entry
  after = '(' .. entry[1]
  for _, field in ipairs(entry[2]) do size = size + #field end
end
return found
"""

# KEYS[1]  the dead letters
# ARGV     the IDs of some
# Returns  how many of them were there
DROP: Final = """
return redis.call('XDEL', KEYS[1], unpack(ARGV))
"""
