-- Moves the cursor, never back; 0 is before the first event. KEYS 1 state. ARGV 1 run id ('' if Redis is durable), 2 epoch, 3 event number. Returns 1
-- if it moved. An event of another epoch, or of another process of Redis, says nothing about this one.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'run', 'event', 'cursor')
if held[1] ~= ARGV[2] or (ARGV[1] ~= '' and held[2] ~= ARGV[1]) then return 0 end
local event = tonumber(ARGV[3])
if event > tonumber(held[3]) or (held[4] and event <= tonumber(held[4])) then return 0 end
redis.call('HSET', KEYS[1], 'cursor', event)
return 1
