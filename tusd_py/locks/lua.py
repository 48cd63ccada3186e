"""What happens to a lock inside Redis, each step in one script, so that no step is seen half done.

Two keys an upload. The lock itself, a text that runs out: `held:<owner>`, `offered:<milliseconds>:<owner>` or `free:<owner>`,
where the owner is who has it, may come and take it, or had it last. A free lock keeps the name of its last holder for the time
of a lease: a holder whose lock vanished because Redis lost its data can tell by it that nobody else had the lock meanwhile.
And the queue, a hash of those who wait: `<owner>` to `<arrived, µs> <seen, ms> <1 if it asks>`; who was not seen for a while
is forgotten.

An owner is `<process>:<number>`; a process listens on a channel of its name, to `ask:<number>` and `wait:<number>`
(somebody wants, or waits for, the lock that it holds under that number) and `offer:<number>` (it may take the lock). Messages
may be lost. All times are by the clock of Redis.
"""

from __future__ import annotations

from tusd_py.redis import Script

OFFER = 2.0
"""Seconds for which a lock is kept for the one to whom it was offered."""
FORGOTTEN = 3.0
"""Seconds after which somebody who waits and does not come again is forgotten."""

_COMMON = (
    f"""
local OFFER, FORGOTTEN, QUEUE = {OFFER * 1000:.0f}, {FORGOTTEN * 1000:.0f}, {FORGOTTEN * 3000:.0f}
"""
    """
local OWNER, LEASE, CHANNEL = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The state of the lock and its owner; since when, if it is offered. Free if there is no lock, then without an owner.
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

-- How many connections heard it. In a cluster 0 may mean that the listener is connected to another node.
local function tell(owner, what)
  local process, number = string.match(owner, '^(.*):(%x+)$')
  return redis.call('PUBLISH', CHANNEL .. process, what .. ':' .. number)
end

-- Who waits, the longest first.
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

-- Offers the lock to the first who hears it, up to `before`. Whether there was one.
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

-- 0 if nobody else waits, 1 if somebody does, 2 if somebody does who asks.
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
-- ARGV: owner, lease (ms), channel prefix, 1 to wait, 1 to ask, an owner that has died (or nothing).
-- {1, demand} if the lock is ours now; else {0, who has it, ms after which it may be free, how many heard (-1: none was told)}.
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
-- {1, demand} if the lock is still ours, {2, demand} if there was none and nobody had one meanwhile, {0, 0} if it is lost.
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
-- ARGV: owner, lease (ms), channel prefix. Leaves the queue, too.
redis.call('HDEL', KEYS[2], OWNER)
local state, owner = read()
if owner == OWNER and state ~= 'free' and not offer(queue()) then
  write('free', OWNER)
end
return 0
""",
)
