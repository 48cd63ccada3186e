"""The Lua scripts of locks in Redis. Each step is one script, hence atomic.

Each upload has two keys. The lock is an expiring string: `held:<owner>`, `offered:<milliseconds>:<owner>` or `free:<owner>`,
where the owner is its holder, the waiter that may take it, or its last holder. A free lock keeps its last holder's name for one
lease: so a holder whose lock vanished because Redis lost its data can tell that no other holder had it meanwhile. The queue is
a hash of waiters: `<owner>` to `<arrived, µs> <seen, ms> <1 if it asks for the release>`; waiters not seen for a while are
dropped.

An owner is `<process>:<number>`. A process subscribes to a channel of its name, for `ask:<number>` and `wait:<number>` (another
process asks, or waits, for the lock that it holds under that number) and `offer:<number>` (it may take the lock). Messages may
be lost. All times are by the clock of Redis.
"""

from __future__ import annotations

from tusd_py.redis import Script

HELD = "held"
"""What the value of a lock begins with while it is held."""
OFFER = 2.0
"""Seconds for which a lock stays reserved for the waiter to whom it was offered."""
FORGOTTEN = 3.0
"""Seconds after which a waiter that does not poll is dropped from the queue."""

_COMMON = (
    f"""
local OFFER, FORGOTTEN, QUEUE = {OFFER * 1000:.0f}, {FORGOTTEN * 1000:.0f}, {FORGOTTEN * 3000:.0f}
"""
    """
local OWNER, LEASE, CHANNEL = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Returns the lock's state, its owner, and since when it is offered. A missing lock is free without an owner.
local function read()
  local value = redis.call('GET', KEYS[1])
  if not value then
    return 'free'
  end
  local state, rest = string.match(value, '^(%a+):(.*)$')
  if state ~= 'offered' then
    return state, rest
  end
  local since, owner = string.match(rest, '^(%d+):(.*)$')
  return state, owner, tonumber(since)
end

local function write(state, owner)
  redis.call('SET', KEYS[1], state .. ':' .. owner, 'PX', LEASE)
end

-- Returns the number of subscribers. In a cluster, 0 may mean that the subscriber is connected to another node.
local function tell(owner, what)
  local process, number = string.match(owner, '^(.*):(%x+)$')
  return redis.call('PUBLISH', CHANNEL .. process, what .. ':' .. number)
end

-- Returns the waiters, longest waiting first.
local function queue()
  local waiting = {}
  local fields = redis.call('HGETALL', KEYS[2])
  for i = 1, #fields, 2 do
    local arrived, seen, asks = string.match(fields[i + 1], '^(%d+) (%d+) (%d)$')
    if now - seen > FORGOTTEN then
      redis.call('HDEL', KEYS[2], fields[i])
    else
      table.insert(waiting, { owner = fields[i], arrived = tonumber(arrived), asks = asks == '1' })
    end
  end
  table.sort(waiting, function(a, b)
    if a.arrived ~= b.arrived then
      return a.arrived < b.arrived
    end
    return a.owner < b.owner
  end)
  return waiting
end

-- Offers the lock to the first subscribed waiter ahead of `before`; returns whether there was one.
local function offer(waiting, before)
  for _, each in ipairs(waiting) do
    if each.owner == before then
      return false
    end
    if tell(each.owner, 'offer') > 0 then
      write('offered:' .. string.format('%.0f', now), each.owner)
      return true
    end
  end
  return false
end

-- Returns 0 without other waiters, 1 with some, 2 if one of them asks for the release.
local function demand(waiting)
  local found = 0
  for _, each in ipairs(waiting) do
    if each.owner ~= OWNER then
      found = math.max(found, each.asks and 2 or 1)
    end
  end
  return found
end
"""
)

ACQUIRE = Script(
    "lock acquire",
    _COMMON
    + """
-- ARGV: owner, lease (ms), channel prefix, 1 to wait, 1 to ask for the release, an owner that has died (or '').
-- Returns {1, demand} if the lock is granted; else {0, its owner, ms after which it may be free, subscribers (-1: none told)}.
local WAITS, ASKS, DEAD = ARGV[4] == '1', ARGV[5], ARGV[6]

local waiting = queue()

local function forget(waiter)
  redis.call('HDEL', KEYS[2], waiter)
  for i, each in ipairs(waiting) do
    if each.owner == waiter then
      table.remove(waiting, i)
      return
    end
  end
end

local function take()
  write('held', OWNER)
  if #waiting > 0 then
    redis.call('HDEL', KEYS[2], OWNER)
  end
  return { 1, demand(waiting) }
end

local state, owner, since = read()
if owner == OWNER and state ~= 'free' then
  return take()
end
if state == 'offered' and now - since >= OFFER then
  forget(owner)
  state = 'free'
end
if DEAD ~= '' and owner == DEAD then
  forget(DEAD)
  state = 'free'
end
if state == 'free' then
  if not offer(waiting, OWNER) then
    return take()
  end
  state, owner, since = read()
end

local heard = -1
if WAITS then
  local before = redis.call('HGET', KEYS[2], OWNER)
  local arrived = before and string.match(before, '^%d+') or string.format('%.0f', time[1] * 1000000 + time[2])
  redis.call('HSET', KEYS[2], OWNER, arrived .. ' ' .. string.format('%.0f', now) .. ' ' .. ASKS)
  redis.call('PEXPIRE', KEYS[2], QUEUE)
  heard = tell(owner, ASKS == '1' and 'ask' or 'wait')
end
local left = redis.call('PTTL', KEYS[1])
if state == 'offered' then
  left = math.min(left, OFFER - (now - since))
end
return { 0, owner, left, heard }
""",
)

RENEW = Script(
    "lock renew",
    _COMMON
    + """
-- ARGV: owner, lease (ms), channel prefix.
-- Returns {1, demand} if still held, {2, demand} if it was missing and no one else had it meanwhile, {0, 0} if lost.
local state, owner = read()
if owner ~= nil and (owner ~= OWNER or state ~= 'held') then
  return { 0, 0 }
end
if owner == nil then
  write('held', OWNER)
else
  redis.call('PEXPIRE', KEYS[1], LEASE)
end
return { owner == nil and 2 or 1, demand(queue()) }
""",
)

RELEASE = Script(
    "lock release",
    _COMMON
    + """
-- ARGV: owner, lease (ms), channel prefix. Leaves the queue as well.
redis.call('HDEL', KEYS[2], OWNER)
local state, owner = read()
if owner == OWNER and state ~= 'free' and not offer(queue()) then
  write('free', OWNER)
end
return 0
""",
)
